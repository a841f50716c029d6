"""NVTabular operators, their array code, and the access layers for devices, Merlin and Dask."""
