"""Keeps torch's store to one address; verl imports this in each process that names it in VERL_USE_EXTERNAL_MODULES."""

from verl_ext.patches import patch_store_address

patch_store_address()
