"""Files that appear whole or not at all."""

from verl_ext.files import write_json, write_text

__all__ = ["write_json", "write_text"]
