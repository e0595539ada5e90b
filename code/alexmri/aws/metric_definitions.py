"""How SageMaker finds the metrics in what a training prints (`contract.metric_lines`).

SageMaker searches every line of a job's log for every regular expression; the first group is the
value. A name must begin its line or follow a blank, so that val_loss is not found in best_val_loss.
The last value of a metric belongs to the model that was saved.
"""

# Printed after every epoch, and once more, with the test figures, for the model that was saved.
NAMES = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "images_per_second",
    "test_loss",
    "test_accuracy",
    "test_macro_f1",
)

# No backslash: what is pasted into JSON, YAML and shells stays what it is.
METRIC_DEFINITIONS = tuple(
    {"Name": name, "Regex": f"(?:^|[ ;]){name}=([-+.0-9eE]+);"} for name in NAMES
)

OBJECTIVE = {"Type": "Maximize", "MetricName": "val_macro_f1"}
