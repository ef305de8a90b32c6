"""ComfyUI nodes that steer Z-Image with reference pictures: put this folder, or a link to it, into `custom_nodes`."""

from .steering_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
