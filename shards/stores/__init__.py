"""Where bytes are: a local folder or an S3 bucket behind one interface, leases, and the local spool."""
