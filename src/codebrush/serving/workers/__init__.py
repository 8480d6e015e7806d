"""Who does the work of jobs: the server's own process, others on this machine, or workers of a cluster."""
