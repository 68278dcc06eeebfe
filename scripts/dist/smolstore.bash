# Completion for bash. Sourced by bash-completion, works without it, too.
_smolstore() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" done_=
    COMPREPLY=()
    if [[ $before == -o ]]; then
        # Options after a comma.
        [[ $word == *,* ]] && done_="${word%,*},"
        mapfile -t COMPREPLY < <(compgen -P "$done_" -W 'ro rw allow_other nodev nosuid noexec noatime' -- "${word##*,}")
        compopt -o nospace 2>/dev/null
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '-f -o -h --help -V --version' -- "$word")
    else
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$word")
        ((COMP_CWORD == 1)) && [[ $word && check == "$word"* ]] && COMPREPLY+=(check)
        return 0
    fi
}
complete -F _smolstore smolstore
