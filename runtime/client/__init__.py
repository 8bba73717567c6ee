"""The library that a driver, or an actor that calls others, uses."""
