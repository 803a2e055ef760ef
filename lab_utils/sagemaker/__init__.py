"""The workshop on SageMaker: the same recipes and the same scripts/train.py, as cloud jobs.

    job.py        training and evaluation jobs: what is sent to AWS, and their outputs back as run directories
    preflight.py  what is wrong with a job, before a cent is spent        cost.py       prices, estimates, ceilings
    endpoint.py   a trained model behind a vLLM endpoint                  resources.py  what runs, stop it, delete it
    session.py    the connection to AWS, or a recorder in its place       container.py  what runs inside a job
    emulation.py  a recorded job run for real, on this machine, without AWS and without docker

Needs the SageMaker SDK (setup/requirements/sagemaker.txt); nothing outside this package imports it.
"""
