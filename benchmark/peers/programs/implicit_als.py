import numpy as np
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

users, items = np.loadtxt("train.csv", int, delimiter=",", skiprows=1).T
histories = csr_matrix((np.ones(len(users), np.float32), (users, items)))
model = AlternatingLeastSquares()
model.fit(histories)
top, _ = model.recommend(np.arange(histories.shape[0]), histories, N=10)
np.savetxt("top.csv", top, "%d", ",")
