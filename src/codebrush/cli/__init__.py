"""The command line: flags in, one typed call out."""
