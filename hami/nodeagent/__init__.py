"""The node process: device plugin, registrar, regions."""
