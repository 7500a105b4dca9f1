"""Where a run goes: from what is asked and what is free to a Placement or the reason there is none."""
