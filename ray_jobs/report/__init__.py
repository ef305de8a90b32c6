"""The HTML report: a run's files read, drawn and put on one page."""
