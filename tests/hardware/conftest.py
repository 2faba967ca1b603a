"""The stub of NVIDIA's library for all tests of the hardware."""

from tests.hardware.stub_driver import driver, stub_library, stub_process  # noqa: F401 - fixtures for all
