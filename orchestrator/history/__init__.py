"""What happened: runs, attempts, allocations and events in SQL; the only package that imports SQLAlchemy."""
