"""The kinds of jobs, and what is done for each."""
