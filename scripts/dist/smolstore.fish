complete -c smolstore -f -a '(__fish_complete_directories (commandline -ct))'
complete -c smolstore -n __fish_is_first_token -a check -d 'verify a store'
complete -c smolstore -s f -d 'stay in the foreground, log to standard error'
complete -c smolstore -s o -x -d 'mount options' \
    -a '(__fish_complete_list , "printf %s\\\\n ro rw allow_other nodev nosuid noexec noatime")'
complete -c smolstore -s h -l help -d 'print a summary'
complete -c smolstore -s V -l version -d 'print the version'
