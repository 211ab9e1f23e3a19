//! config.md, "Mounts": order, destinations, sources, and the table of options.

use std::fs;
use std::os::unix::fs::chown;

use serde_json::json;

use crate::bundle::Bundle;
use crate::case::{Case, Outcome, equal, failed, holds, skipped};
use crate::seen::Mount;
use crate::trial::Trial;

const MUST: &[&str] = &["mount-options"];
const SHOULD: &[&str] = &["mount-options-recommended"];

/// How an option shows in mountinfo.
#[derive(Debug, Clone, Copy)]
enum Shows {
    /// Among the mount's own options.
    Is(&'static str),
    /// Not among them.
    IsNot(&'static str),
    /// Among the file system's options.
    Data(&'static str),
    /// Not among them.
    NotData(&'static str),
    /// In the tags of propagation.
    Tag(&'static str),
    /// Without any tag.
    NoTag,
    /// The kernel shows nothing: the option is taken, and is not handed to the file system.
    Taken,
}

/// Options on a tmpfs, and how the last of them shows. The ones before make that it could be otherwise.
const ON_TMPFS: &[(&[&str], Shows)] = &[
    (&["async"], Shows::NotData("sync")),
    (&["noatime", "atime"], Shows::IsNot("noatime")),
    (&["ro", "nosuid", "noexec", "nodev", "defaults"], Shows::Taken),
    (&["nodev", "dev"], Shows::IsNot("nodev")),
    (&["nodiratime", "diratime"], Shows::IsNot("nodiratime")),
    (&["dirsync"], Shows::Data("dirsync")),
    (&["noexec", "exec"], Shows::IsNot("noexec")),
    (&["iversion"], Shows::Taken),
    (&["lazytime"], Shows::Data("lazytime")),
    (&["silent", "loud"], Shows::Taken),
    (&["noatime"], Shows::Is("noatime")),
    (&["nodev"], Shows::Is("nodev")),
    (&["nodiratime"], Shows::Is("nodiratime")),
    (&["noexec"], Shows::Is("noexec")),
    (&["iversion", "noiversion"], Shows::Taken),
    (&["lazytime", "nolazytime"], Shows::NotData("lazytime")),
    (&["relatime", "norelatime"], Shows::Taken),
    (&["strictatime", "nostrictatime"], Shows::Taken),
    (&["nosuid"], Shows::Is("nosuid")),
    (&["relatime"], Shows::Is("relatime")),
    (&["ro"], Shows::Is("ro")),
    (&["ro", "rw"], Shows::Is("rw")),
    (&["silent"], Shows::Taken),
    (&["strictatime"], Shows::IsNot("relatime")),
    (&["nosuid", "suid"], Shows::IsNot("nosuid")),
    (&["sync"], Shows::Data("sync")),
    (&["private"], Shows::NoTag),
    (&["rprivate"], Shows::NoTag),
    (&["shared"], Shows::Tag("shared")),
    (&["rshared"], Shows::Tag("shared")),
    (&["slave"], Shows::NoTag),
    (&["rslave"], Shows::NoTag),
    (&["unbindable"], Shows::Tag("unbindable")),
    (&["runbindable"], Shows::Tag("unbindable")),
];

/// Options that should be there, on a tmpfs.
const RECOMMENDED: &[(&[&str], Shows)] = &[
    (&["nosymfollow"], Shows::Is("nosymfollow")),
    (&["nosymfollow", "symfollow"], Shows::IsNot("nosymfollow")),
];

/// Recursive options: what is set before on both mounts, the option, and how it shows on both.
const RECURSIVE: &[(&[&str], &str, Shows)] = &[
    (&["noatime"], "ratime", Shows::IsNot("noatime")),
    (&["nodev"], "rdev", Shows::IsNot("nodev")),
    (&["nodiratime"], "rdiratime", Shows::IsNot("nodiratime")),
    (&["noexec"], "rexec", Shows::IsNot("noexec")),
    (&[], "rnoatime", Shows::Is("noatime")),
    (&[], "rnodiratime", Shows::Is("nodiratime")),
    (&[], "rnoexec", Shows::Is("noexec")),
    (&["relatime"], "rnorelatime", Shows::Taken),
    (&["strictatime"], "rnostrictatime", Shows::Is("relatime")),
    (&[], "rnosuid", Shows::Is("nosuid")),
    (&[], "rnosymfollow", Shows::Is("nosymfollow")),
    (&["strictatime"], "rrelatime", Shows::Is("relatime")),
    (&[], "rro", Shows::Is("ro")),
    (&["ro"], "rrw", Shows::Is("rw")),
    (&["noatime"], "rstrictatime", Shows::IsNot("relatime")),
    (&["nosuid"], "rsuid", Shows::IsNot("nosuid")),
    (&["nosymfollow"], "rsymfollow", Shows::IsNot("nosymfollow")),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config/mounts/order", &["mounts-order"], order),
        Case::new(
            "config/mounts/relative-destination",
            &["mount-destination-relative"],
            relative_destination,
        ),
        Case::new("config/mounts/absolute-source", &["mount-source"], |t| bind_source(t, true)),
        Case::new("config/mounts/relative-source", &["mount-source"], |t| bind_source(t, false)),
        Case::new("config/mounts/file-source", &["mount-source"], file_source),
        Case::new("config/mounts/destination-is-made", &["create-applies"], |t| {
            let seen = t.bundle()?.mount("/deep/in/the/tree", "tmpfs", "tmpfs", &[]).report()?;
            equal("the type", seen.mount("/deep/in/the/tree")?.kind.as_str(), "tmpfs")
        }),
        Case::new("config/mounts/data", &["options-data"], |t| {
            let seen = t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &["size=64k", "nr_inodes=33"]).report()?;
            let mount = seen.mount("/mnt")?;
            holds(
                &format!("size and nr_inodes are in {:?}", mount.data),
                mount.has_data("size=64k") && mount.has_data("nr_inodes=33"),
            )
        }),
        Case::new("config/mounts/unknown-option", &["options-data"], |t| {
            // the file system refuses what it does not know, so it has to have been asked
            t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &["no-such-option"]).refused()
        }),
        Case::new("config/mount-option/bind", MUST, |t| bind_below(t, "bind", false)),
        Case::new("config/mount-option/rbind", MUST, |t| bind_below(t, "rbind", true)),
        Case::new("config/mount-option/remount", MUST, remount),
        Case::new("config/mount-option/bind ro", MUST, |t| bound(t, &["bind", "ro"], Shows::Is("ro"))),
        Case::new("config/mount-option/bind nosuid nodev noexec", MUST, |t| {
            bound(t, &["bind", "nosuid", "nodev", "noexec"], Shows::Is("noexec"))
        }),
        Case::new(
            "config/mount-option/idmap",
            &["idmap-applied", "idmap-values", "mount-options-recommended"],
            |t| idmapped(t, "idmap"),
        ),
        Case::new(
            "config/mount-option/ridmap",
            &["idmap-applied", "idmap-values", "mount-options-recommended"],
            |t| idmapped(t, "ridmap"),
        ),
        Case::new("config/mount-option/idmap-without-mappings", &["idmap-without"], |t| {
            idmap_without(t, "idmap")
        }),
        Case::new("config/mount-option/ridmap-without-mappings", &["idmap-without"], |t| {
            idmap_without(t, "ridmap")
        }),
        Case::new("config/mount-option/idmap-of-the-container", &["idmap-container"], idmap_of_container),
        Case::new("config/mounts/uid-mappings-alone", &["mount-mappings-both"], |t| {
            mappings_alone(t, "uidMappings")
        }),
        Case::new("config/mounts/gid-mappings-alone", &["mount-mappings-both"], |t| {
            mappings_alone(t, "gidMappings")
        }),
    ];
    for (table, requirements) in [(ON_TMPFS, MUST), (RECOMMENDED, SHOULD)] {
        for (options, shows) in table {
            let name = options.last().copied().unwrap_or_default();
            cases.push(Case::new(format!("config/mount-option/{name}"), requirements, move |t| {
                on_tmpfs(t, options, *shows)
            }));
        }
    }
    for (before, option, shows) in RECURSIVE {
        cases.push(Case::new(format!("config/mount-option/{option}"), SHOULD, move |t| {
            recursive(t, before, option, *shows)
        }));
    }
    cases
}

fn shown(mount: &Mount, shows: Shows) -> Outcome {
    let what = format!("{:?} {:?} {:?} at {}", mount.options, mount.tags, mount.data, mount.point);
    let is = match shows {
        Shows::Is(option) => mount.has(option),
        Shows::IsNot(option) => !mount.has(option),
        Shows::Data(option) => mount.has_data(option),
        Shows::NotData(option) => !mount.has_data(option),
        Shows::Tag(tag) => mount.tagged(tag),
        Shows::NoTag => mount.tags.is_empty(),
        Shows::Taken => true,
    };
    holds(&format!("{shows:?} in {what}"), is)
}

fn on_tmpfs(t: &Trial, options: &[&str], shows: Shows) -> Outcome {
    let seen = t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", options).report()?;
    shown(&seen.mount("/mnt")?, shows)
}

/// A directory of the host with a tmpfs in it, which goes when the case ends.
fn source_with_mount_below(t: &Trial, options: &[&str]) -> Outcome<String> {
    use nix::mount::{MsFlags, mount};
    let source = t.path("source");
    let flags = options.iter().fold(MsFlags::empty(), |flags, option| {
        flags
            | match *option {
                "noatime" => MsFlags::MS_NOATIME,
                "nodev" => MsFlags::MS_NODEV,
                "nodiratime" => MsFlags::MS_NODIRATIME,
                "noexec" => MsFlags::MS_NOEXEC,
                "nosuid" => MsFlags::MS_NOSUID,
                "relatime" => MsFlags::MS_RELATIME,
                "strictatime" => MsFlags::MS_STRICTATIME,
                "ro" => MsFlags::MS_RDONLY,
                "nosymfollow" => MsFlags::from_bits_retain(256),
                _ => MsFlags::empty(),
            }
    });
    let none: Option<&str> = None;
    fs::create_dir(&source)?;
    let mounted = mount(Some("tmpfs"), &source, Some("tmpfs"), MsFlags::empty(), none)
        .map_err(std::io::Error::from)
        .and_then(|()| fs::create_dir(source.join("below")))
        .and_then(|()| Ok(mount(Some("tmpfs"), &source.join("below"), Some("tmpfs"), flags, none)?))
        .and_then(|()| {
            let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
            Ok(mount(none, &source, none, again, none)?)
        });
    match mounted {
        Ok(()) => Ok(source.to_string_lossy().into_owned()),
        Err(error) => failed(format!("prepare the source: {error}")),
    }
}

fn recursive(t: &Trial, before: &[&str], option: &str, shows: Shows) -> Outcome {
    let source = source_with_mount_below(t, before)?;
    let seen = t.bundle()?.mount("/mnt", "none", &source, &["rbind", option]).report()?;
    shown(&seen.mount("/mnt")?, shows)?;
    shown(&seen.mount("/mnt/below")?, shows)
}

fn bind_below(t: &Trial, option: &str, expected: bool) -> Outcome {
    let source = source_with_mount_below(t, &[])?;
    let seen = t.bundle()?.mount("/mnt", "none", &source, &[option]).report()?;
    seen.mount("/mnt")?;
    equal("a mount below the source is there", seen.mount("/mnt/below").is_ok(), expected)
}

fn bound(t: &Trial, options: &[&str], shows: Shows) -> Outcome {
    let source = source_with_mount_below(t, &[])?;
    let seen = t.bundle()?.mount("/mnt", "none", &source, options).report()?;
    shown(&seen.mount("/mnt")?, shows)
}

fn remount(t: &Trial) -> Outcome {
    let b = t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &["nosuid"]);
    let seen = b.mount("/mnt", "tmpfs", "tmpfs", &["remount", "nosuid", "ro"]).report()?;
    let mounts: Vec<Mount> = seen.mounts()?.into_iter().filter(|mount| mount.point == "/mnt").collect();
    equal("mounts at /mnt", mounts.len(), 1)?;
    mounts.iter().try_for_each(|mount| shown(mount, Shows::Is("ro")))
}

fn order(t: &Trial) -> Outcome {
    let b = t.bundle()?.mount("/mnt", "tmpfs", "first", &["size=64k"]).mount(
        "/mnt/inner",
        "tmpfs",
        "second",
        &["size=128k"],
    );
    let seen = b.report()?;
    let points: Vec<String> = seen
        .mounts()?
        .into_iter()
        .map(|mount| mount.point)
        .filter(|point| point.starts_with("/mnt"))
        .collect();
    equal("the mounts below /mnt", points, vec!["/mnt".to_owned(), "/mnt/inner".to_owned()])?;
    // over the first two, so only the last is seen
    let seen = t
        .bundle()?
        .mount("/mnt/inner", "tmpfs", "one", &[])
        .mount("/mnt", "tmpfs", "two", &[])
        .does(&["list:/mnt"])
        .report()?;
    equal("what is in the later mount", seen.said("list:/mnt")?.as_str(), "")
}

fn relative_destination(t: &Trial) -> Outcome {
    let seen = t.bundle()?.mount("mnt", "tmpfs", "tmpfs", &[]).set("/process/cwd", json!("/tmp")).report()?;
    equal("the type of what is at /mnt", seen.mount("/mnt")?.kind.as_str(), "tmpfs")
}

fn bind_source(t: &Trial, absolute: bool) -> Outcome {
    let b = t.bundle()?;
    fs::create_dir(b.dir().join("data"))?;
    fs::write(b.dir().join("data/file"), "from the host")?;
    let source =
        if absolute { b.dir().join("data").to_string_lossy().into_owned() } else { "data".to_owned() };
    let seen = b.mount("/mnt", "none", &source, &["bind"]).does(&["read:/mnt/file"]).report()?;
    equal("the file", seen.said("read:/mnt/file")?.as_str(), "from the host")
}

fn file_source(t: &Trial) -> Outcome {
    fs::write(t.path("file"), "from the host")?;
    let b = t.bundle()?.mount("/etc/file", "none", &t.path("file").to_string_lossy(), &["bind"]);
    let seen = b.does(&["read:/etc/file"]).report()?;
    equal("the file", seen.said("read:/etc/file")?.as_str(), "from the host")
}

/// A tmpfs of the host, with a tmpfs below, each with a file of user 5, or a reason why there is none.
fn owned_source(t: &Trial) -> Outcome<String> {
    let source = source_with_mount_below(t, &[])?;
    for file in ["file", "below/file"] {
        let path = std::path::Path::new(&source).join(file);
        fs::write(&path, "")?;
        chown(&path, Some(5), Some(5))?;
    }
    Ok(source)
}

fn mapped<'t>(b: Bundle<'t>, source: &str, options: &[&str]) -> Bundle<'t> {
    let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    b.push(
        "/mounts",
        json!({ "destination": "/mnt", "source": source, "type": "none", "options": options,
                "uidMappings": mapping, "gidMappings": mapping }),
    )
}

fn idmapped(t: &Trial, option: &str) -> Outcome {
    let source = owned_source(t)?;
    let (bind, files) = match option {
        "ridmap" => ("rbind", vec!["stat:/mnt/file", "stat:/mnt/below/file"]),
        _ => ("bind", vec!["stat:/mnt/file"]),
    };
    let b = mapped(t.bundle()?, &source, &[bind, option]).does(&files);
    let container = match b.try_create()? {
        Ok(container) => container,
        // the kernel's answer for a file system that has no id mapping
        Err(said) if said.err.contains("nvalid argument") && !tmpfs_maps_ids() => {
            return skipped("tmpfs has no id mapping here");
        }
        Err(said) => return failed(format!("create: {}", said.last_line())),
    };
    container.start()?;
    let seen = container.report()?;
    for file in files {
        let stat = seen.stat(file)?;
        equal("the owner of a file of user 5, 0 being 1000", (stat.uid, stat.gid), (1005, 1005))?;
    }
    Ok(())
}

/// Since Linux 6.3.
fn tmpfs_maps_ids() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(3))
}

fn idmap_without(t: &Trial, option: &str) -> Outcome {
    let source = owned_source(t)?;
    t.bundle()?.mount("/mnt", "none", &source, &["rbind", option]).refused()
}

fn idmap_of_container(t: &Trial) -> Outcome {
    let source = owned_source(t)?;
    let b = t
        .bundle()?
        .user_namespace()?
        .mount("/mnt", "none", &source, &["rbind", "idmap"])
        .does(&["stat:/mnt/file"]);
    // an error is right as well
    let Ok(container) = b.try_create()? else { return Ok(()) };
    container.start()?;
    let seen = container.report()?;
    equal("the owner of a file of user 5, as the container sees it", seen.stat("stat:/mnt/file")?.uid, 5)
}

fn mappings_alone(t: &Trial, which: &str) -> Outcome {
    let source = owned_source(t)?;
    let mut mount =
        json!({ "destination": "/mnt", "source": source, "type": "none", "options": ["bind", "idmap"] });
    if let Some(mount) = mount.as_object_mut() {
        mount.insert(which.to_owned(), json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]));
    }
    let b = t.bundle()?.push("/mounts", mount).does(&["stat:/mnt/file"]);
    b.refused()
}
