//! A containerd of our own with its CRI plugin: berth and runc are runtime handlers of these names, pods get
//! addresses on a bridge in the private network namespace.

use std::path::Path;

use anyhow::Result;

use crate::containerd::daemon::{self, Daemon, Setup};
use crate::host::{host, make_volumes};
use crate::play::UNDER_TEST;

/// The programs without which there is nothing to test.
pub const NEEDED: [&str; 8] = daemon::NEEDED;

/// Where distributions put the network plugins.
const PLUGINS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// What the pods' own container runs.
const PAUSE: &str = "docker.io/library/pause:latest";

const SETUP: Setup = Setup {
    name: "berth-cri",
    namespace: "k8s.io",
    prepare,
    plugins,
    images: &[(daemon::IMAGE, &["sh"]), (PAUSE, &["sleep", "1000000"])],
};

fn network_plugins() -> Option<&'static str> {
    let whole = |directory: &str| {
        ["loopback", "bridge", "host-local"].iter().all(|name| Path::new(directory).join(name).is_file())
    };
    PLUGINS.into_iter().find(|directory| whole(directory))
}

/// Why there can be no pods here.
pub fn cannot_run() -> Option<String> {
    network_plugins().is_none().then(|| "the network plugins are not installed".to_owned())
}

pub fn start(runtime: &Path) -> Result<Daemon> {
    Daemon::start(runtime, &SETUP)
}

/// Directories that pods need, and their network.
fn prepare(home: &Path) -> Result<()> {
    // the plugins remember there what they have done
    if Path::new("/var/lib/cni").is_dir() {
        host("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/var/lib/cni"])?;
    }
    make_volumes(&home.join("volumes"))?;
    let networks = home.join("networks");
    std::fs::create_dir(&networks)?;
    std::fs::create_dir(home.join("logs"))?;
    let network = serde_json::json!({
        "cniVersion": "0.4.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "pods", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": home.join("addresses"),
                "ranges": [[{ "subnet": "10.177.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    Ok(std::fs::write(networks.join("pods.conflist"), network.to_string())?)
}

fn plugins(home: &Path, runtime: &Path) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    // a test's processes may not be allowed to make themselves less likely to be killed; limits of huge pages are off by default
    let mut text = format!(
        "[{cri}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\ndisable_hugetlb_controller = false\n\
         [{cri}.cni]\nbin_dir = \"{}\"\nconf_dir = \"{}/networks\"\n",
        network_plugins().unwrap_or_default(),
        home.display()
    );
    for handler in [UNDER_TEST, "runc"] {
        text += &format!(
            "[{cri}.containerd.runtimes.{handler}]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{cri}.containerd.runtimes.{handler}.options]\nBinaryName = \"{}\"\n",
            daemon::path_of(handler, runtime)
        );
    }
    text
}
