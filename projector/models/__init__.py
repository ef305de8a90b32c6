"""The models in use: found, loaded, cut to what is needed, and placed on a device."""
