"""The controller process: webhook, extender, binder."""
