"""How far a run is: its events and figures, told on standard output, as metrics and in its record."""
