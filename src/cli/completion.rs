//! Completion scripts: what clap knows, and the IDs of the containers that are there.

use super::commands;
use crate::options::Shell;

/// The completion script of a shell.
pub fn completion(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(&generated(clap_complete::Shell::Bash)),
        Shell::Zsh => zsh(&generated(clap_complete::Shell::Zsh)),
        Shell::Fish => fish(&generated(clap_complete::Shell::Fish)),
    }
}

fn generated(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut commands::tree(), "berth", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The commands that take the ID of a container that exists.
fn commands_with_id(separator: &str) -> String {
    let names = commands::entries().filter(|entry| entry.takes_container()).map(|entry| entry.name);
    names.collect::<Vec<_>>().join(separator)
}

/// A function around clap's: the IDs come where the word before is the command or an option of it. They are compared
/// in the shell because `compgen -W` would expand them.
fn bash(script: &str) -> String {
    let commands = commands_with_id("|");
    format!(
        r#"{script}
_berth_with_ids() {{
    _berth "$@"
    local cur=${{COMP_WORDS[COMP_CWORD]}} word id wanted=
    [[ $cur == -* ]] && return 0
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [[ $wanted && $word != -* ]]; then
            return 0
        fi
        case $word in
            {commands}) wanted=1 ;;
        esac
    done
    [[ $wanted ]] || return 0
    COMPREPLY=()
    while IFS= read -r id; do
        [[ $id == "$cur"* ]] && COMPREPLY+=("$id")
    done < <(berth list --quiet 2>/dev/null)
    return 0
}}
complete -F _berth_with_ids -o bashdefault -o default berth
"#
    )
}

/// The action of the argument is a function of ours. The first line must stay the first.
fn zsh(script: &str) -> String {
    let arguments =
        [r"':ID -- The container'\''s ID:", r"'*::ID -- The containers'\'' IDs \[default\: all\]:"];
    let function = r#"
_berth_ids() {
    local -a ids
    ids=(${(f)"$(berth list --quiet 2>/dev/null)"})
    compadd -a ids
}
"#;
    let script = arguments.iter().fold(script.to_owned(), |script, argument| {
        script.replace(argument, &format!("{argument}_berth_ids"))
    });
    script.replacen('\n', &format!("\n{function}"), 1)
}

fn fish(script: &str) -> String {
    let commands = commands_with_id(" ");
    format!(
        "{script}complete -c berth -n \"__fish_berth_using_subcommand {commands}\" -f \
         -a \"(berth list --quiet 2>/dev/null)\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_completed_for_containers_that_exist() {
        assert_eq!(
            commands_with_id(" "),
            "start exec kill pause resume update checkpoint delete state ps stats events"
        );
        let zsh = completion(Shell::Zsh);
        assert!(zsh.starts_with("#compdef berth\n"));
        assert_eq!(zsh.matches(":_berth_ids' \\").count(), 12);
        assert!(completion(Shell::Bash).contains(
            "            start|exec|kill|pause|resume|update|checkpoint|delete|state|ps|stats|events)"
        ));
        assert!(completion(Shell::Fish).contains("using_subcommand start exec kill"));
    }

    #[test]
    fn every_command_and_option_is_in_every_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completion(shell);
            for word in ["create", "check", "completion", "systemd-cgroup", "ignore-paused", "cgroupfs"] {
                assert!(script.contains(word), "{shell:?}: {word}");
            }
        }
    }
}
