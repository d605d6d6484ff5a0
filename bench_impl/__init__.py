"""What the twins and the harness are timed against: stock models, bare products, other tools."""
