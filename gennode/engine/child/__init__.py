"""The compute process: layers run beside the node, where they can end nobody but themselves."""
