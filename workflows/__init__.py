"""NVTabular operators, the array code under them, and the doors to the device, to Merlin and to Dask."""
