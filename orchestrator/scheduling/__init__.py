"""When a run goes: the states of a run, and which waiting runs start now."""
