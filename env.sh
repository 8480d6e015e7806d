export OMP_NUM_THREADS=1 PATH=/work/main/.venv/bin:$PATH PYTHONPATH=/work/h/me/src
