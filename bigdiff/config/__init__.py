"""Every knob of the system, typed, without torch: a login node reads it in well under a second."""
