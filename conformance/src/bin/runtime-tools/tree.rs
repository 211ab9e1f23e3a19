//! The built tree: `validation/NAME/NAME.t`, programs that want to be run at its top.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Its program's name without `.t`.
    pub name: String,
    /// Absolute path.
    pub program: PathBuf,
}

/// The tests of a tree, by name.
pub fn tests(tree: &Path) -> Result<Vec<Test>> {
    let build = "run `make runtimetest validation-executables` there";
    let validation = tree.join("validation");
    let directories = fs::read_dir(&validation).with_context(|| format!("{validation:?}"))?;
    if !is_program(&tree.join("runtimetest")) {
        bail!("{tree:?}: runtimetest is not built: {build}");
    }
    let mut tests = Vec::new();
    for directory in directories {
        let directory = directory?.path();
        if directory.is_dir() {
            collect(&directory, &mut tests)?;
        }
    }
    if tests.is_empty() {
        bail!("{tree:?}: no test is built: {build}");
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

fn collect(directory: &Path, tests: &mut Vec<Test>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("{directory:?}"))? {
        let program = entry?.path();
        if program.extension().is_some_and(|extension| extension == "t")
            && is_program(&program)
            && let Some(name) = program.file_stem()
        {
            tests.push(Test { name: name.to_string_lossy().into_owned(), program });
        }
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("runtime-tools-tree-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("validation/b")).unwrap();
        fs::create_dir_all(path.join("validation/a")).unwrap();
        path
    }

    fn program(path: &Path, mode: u32) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_tests_are_the_programs_by_name() {
        let tree = scratch("all");
        program(&tree.join("runtimetest"), 0o755);
        program(&tree.join("validation/b/b.t"), 0o755);
        program(&tree.join("validation/b/b.go"), 0o755);
        program(&tree.join("validation/a/a.t"), 0o755);
        program(&tree.join("validation/a/no.t"), 0o644);
        let names: Vec<String> = tests(&tree).unwrap().into_iter().map(|test| test.name).collect();
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn a_tree_that_is_not_built_says_how() {
        let tree = scratch("sources");
        let first = tests(&tree).unwrap_err().to_string();
        program(&tree.join("runtimetest"), 0o755);
        let second = tests(&tree).unwrap_err().to_string();
        fs::remove_dir_all(&tree).unwrap();
        assert!(first.contains("runtimetest is not built: run `make"), "{first}");
        assert!(second.contains("no test is built: run `make"), "{second}");
    }
}
