"""How far a run is: its events and figures, reported on standard output, as metrics and in its record."""
