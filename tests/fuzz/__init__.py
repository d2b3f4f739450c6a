"""Random and damaged packets through the compiled stages, every index checked: `make fuzz`."""
