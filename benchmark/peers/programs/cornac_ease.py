from pathlib import Path

from cornac.data import Dataset, Reader
from cornac.models import EASE

data = Dataset.from_uir(Reader().read("train.csv", fmt="UI", sep=",", skip_lines=1))
model = EASE()
model.fit(data)
top = ((user, *model.recommend(user, k=10, remove_seen=True, train_set=data)) for user in data.user_ids)
Path("top.csv").write_text("\n".join(",".join(row) for row in top))
