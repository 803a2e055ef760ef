"""The workshop on SageMaker: the same recipes and the same scripts/train.py, as cloud jobs.

    session.py    the connection to AWS, or a recorder        resources.py  what costs money, stop it, delete it
    cost.py       prices, estimates, ceilings                 endpoint.py   a trained model behind a vLLM endpoint
    job.py        training and evaluation jobs                container.py  what runs inside a job
    preflight.py  problems found before a job costs anything  emulation.py  a recorded job run on this machine

Needs the SageMaker SDK (setup/requirements/sagemaker.txt); nothing outside this package imports it.
"""
