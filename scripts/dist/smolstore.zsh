#compdef smolstore
_arguments -s \
    '-f[stay in the foreground, log to standard error]' \
    '*-o[mount options]:option:_values -s , option ro rw allow_other nodev nosuid noexec noatime' \
    '(- *)'{-h,--help}'[print a summary]' \
    '(- *)'{-V,--version}'[print the version]' \
    '1:store:_alternative "commands:command:(check)" "stores:store:_files -/"' \
    '2:mount point:_files -/'
