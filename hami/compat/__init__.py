"""HAMi's own configuration, as tables onto the settings of this project."""
