"use strict";

const HISTORY = 20;
const [form, user, k, status, results] = ["ask", "user", "k", "status", "results"].map((id) => document.getElementById(id));
const health = fetch("health").then((response) => response.json());
let latest = 0; // answers to earlier questions may come later

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function meter(value) {
  const made = element("meter", "", "");
  made.value = value;
  made.setAttribute("aria-hidden", "true"); // the number stands beside it
  return made;
}

function row({ item, title, score }, isShare) {
  const made = document.createElement("li");
  made.append(element("span", "name", title || item));
  if (title) made.append(element("span", "id", item));
  if (score !== undefined && isShare) made.append(meter(score));
  if (score !== undefined) made.append(element("span", "score", isShare ? score.toPrecision(3) : score.toFixed(3)));
  return made;
}

function show(id, items, empty, isShare = true) {
  const rows = items.map((item) => row(item, isShare));
  if (!rows.length) rows.push(element("li", "none", empty));
  document.getElementById(id).replaceChildren(...rows);
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function ask(name) {
  const question = ++latest;
  results.setAttribute("aria-busy", "true");
  say("Asking …");
  try {
    const response = await fetch("recommend", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ users: [name], k: Number(k.value), history: HISTORY }),
    });
    const [answer, { scores }] = await Promise.all([response.json(), health]);
    if (question !== latest) return;
    results.hidden = !response.ok;
    if (response.status === 404) return say(`User ${name} is not known.`, true);
    if (!response.ok) return say(`No answer: ${answer.detail}.`, true);
    const [found] = answer.users;
    const isKnown = found.basis === "model";
    const isLogit = isKnown && scores === "logit";
    document.getElementById("meaning").textContent = isLogit
      ? "and the model's scores (logits), which compare the items of one user"
      : isKnown
        ? "and how probable the model finds an interaction"
        : "the most popular items, and the share of users who have them";
    show("recommended", found.items, "Nothing is left to recommend.", !isLogit);
    show("history", found.history, "Nothing is known of this user.");
    say(isKnown ? `User ${name}` : `User ${name} is not known: what follows is popular, not personal.`);
  } catch {
    if (question !== latest) return;
    results.hidden = true;
    say("The service does not answer.", true);
  } finally {
    if (question === latest) results.removeAttribute("aria-busy");
  }
}

function askAddress() {
  const name = new URLSearchParams(location.hash.slice(1)).get("user");
  if (!name) return;
  user.value = name;
  ask(name);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const address = `#${new URLSearchParams({ user: user.value.trim() })}`;
  if (address === location.hash) askAddress();
  else location.hash = address; // so that the address can be shared, and "back" works
});
addEventListener("hashchange", askAddress);

async function introduce() {
  const { n_users, n_items, examples } = await health;
  const count = (number, what) => `${number.toLocaleString("en")} ${what}`;
  document.getElementById("about").textContent =
    `A NeuMF network trained on ${count(n_users, "users")} and ${count(n_items, "items")}`;
  const buttons = examples.map((name) => {
    const made = element("button", "", name);
    made.type = "button";
    made.addEventListener("click", () => {
      user.value = name;
      form.requestSubmit();
    });
    return made;
  });
  document.getElementById("examples").replaceChildren("For example", ...buttons);
}

introduce().catch(() => say("The service does not answer.", true));
askAddress();
