"""What the scripts share, in rooms; imports go down only:

report/       rows, tables, scores of a network, figures
experiments/  the catalogue of experiments, their jobs, and running these
student/      the student's loss, its weights, its name, the topology term
clouds/       a teacher's outputs and point clouds on disk, embedding, fitting a RipsNet
training/     the training loop
networks.py   a network from anybody's checkpoint;  data.py  the data set that the options name
files/        whole files, locks, checkpoints, run folders, paths, provenance
distributed.py  what several processes of one run, started by torchrun, have to agree on
settings.py   every option, declared once;  errors.py  how a program ends that cannot go on

Beside them, for the scripts alone, cli/ makes parsers from the settings.
"""
