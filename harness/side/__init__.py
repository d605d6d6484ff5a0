"""What every side's process does with bytes, whatever its framework."""
