"""Prints the documents of a YAML file as a JSON list; with `kubernetes`, each is checked against the schemas of that too."""

import json
import sys

import yaml

# The oldest release whose schemas are looked at: what is in the manifests has been there since.
RELEASE = "1.27"

path, kind = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    documents = list(yaml.safe_load_all(file))
if kind == "kubernetes":
    import kubernetes_validate

    for document in documents:
        kubernetes_validate.validate(document, RELEASE, strict=True)
print(json.dumps(documents))
