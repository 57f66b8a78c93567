"use strict";
// Images go to /predict one by one, and each answer stands below its image. What comes from outside is only ever text.
const known = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const make = (name, text, parent) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const chosen = () => find("model")?.value ?? known.models[0].name;
const shown = () => { find("explaining").hidden = !known.models.find((one) => one.name === chosen()).explains; };
const percent = (value) => `${(100 * value).toFixed(1)} %`;

const ask = async (file) => {
  const place = document.createElement("section");
  place.className = "answer";
  find("answers").prepend(place);
  const image = make("img", "", place);
  image.alt = file.name || "the image";
  const reader = new FileReader();
  reader.onload = () => { image.src = reader.result; };
  image.onload = () => { if (image.naturalWidth < 160) image.className = "squares"; };
  reader.readAsDataURL(file);
  const side = make("div", "", place);
  const note = make("p", "asking ...", side);
  const query = new URLSearchParams({ model: chosen() });
  if (find("explain").value && !find("explaining").hidden) query.set("explain", find("explain").value);
  const headers = find("token")?.value ? { authorization: `Bearer ${find("token").value}` } : {};
  const began = performance.now();
  try {
    const response = await fetch(`predict?${query}`, { method: "POST", body: file, headers });
    const answer = await response.json();
    const one = Array.isArray(answer) ? answer[0] : answer;
    if (one.error) throw new Error(one.error);
    note.textContent = `${file.name || "pasted"}: ${Math.round(performance.now() - began)} ms`;
    note.className = "small";
    const list = make("ol", "", side);
    for (const prediction of one.predictions) {
      const item = make("li", "", list);
      const row = make("div", "", item);
      row.className = "row";
      make("span", prediction.label, row);
      make("span", percent(prediction.probability), row);
      const bar = make("div", "", item);
      bar.className = "bar";
      bar.style.width = `${100 * prediction.probability}%`;
    }
    const maps = make("div", "", place);
    maps.className = "maps";
    for (const map of one.maps ?? []) {
      const figure = make("figure", "", maps);
      const picture = make("img", "", figure);
      picture.src = map.image;
      picture.alt = `where the model looks for ${map.label}`;
      make("figcaption", `${map.label} ${percent(map.probability)}`, figure);
    }
  } catch (error) {
    note.className = "notice";
    note.textContent = error instanceof TypeError ? "the server does not answer." : error.message;
  }
};
const all = (files) => { for (const file of files) ask(file); };

find("file").addEventListener("change", (event) => { all(event.target.files); event.target.value = ""; });
find("model")?.addEventListener("change", shown);
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") all(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => all(event.clipboardData.files));
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
shown();
