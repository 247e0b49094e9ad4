"""Tools of the host are tested on what the shim's tests run on."""

from tests.shim.conftest import built, compile_program, machine, start_client

__all__ = ["built", "compile_program", "machine", "start_client"]
