"""The command line: options, their files, the log and the progress of a job."""
