"""One module a vendor: its row of the vendor table."""
