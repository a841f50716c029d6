import pandas as pd
from recommenders.models.ncf.dataset import Dataset
from recommenders.models.ncf.ncf_singlenode import NCF

rows = pd.read_csv("train.csv", names=["userID", "itemID"], skiprows=1).assign(rating=1.0).sort_values("userID")
rows.to_csv("sorted.csv", index=False)
data = Dataset(train_file="sorted.csv")
model = NCF(n_users=data.n_users, n_items=data.n_items, model_type="NeuMF")
model.fit(data)
users, items = list(data.user2id), list(data.item2id)
pairs = pd.MultiIndex.from_product([users, items], names=["userID", "itemID"])
scores = [score for user in users for score in model.predict([user] * len(items), items, is_list=True)]
unseen = pd.Series(scores, pairs, name="score").drop(pd.MultiIndex.from_frame(rows[["userID", "itemID"]]))
unseen.groupby("userID").nlargest(10).droplevel(0).to_csv("top.csv")
