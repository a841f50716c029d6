"""`python -m benchmark scaling`: how time and memory grow with the data, the network and the number of processes."""
