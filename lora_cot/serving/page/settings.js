// Model, search and key. All but the key are remembered; the key is kept for this tab alone.

const REMEMBERED = ["model", "effort", "strategy", "candidates"];
const at = (id) => document.getElementById(id);
let models = [];

/** The keys of a request that the settings decide. */
export function read() {
  const search = { return: "trace" };
  if (at("strategy").value) search.strategy = at("strategy").value;
  if (at("candidates").value) search.candidates = at("candidates").valueAsNumber;
  const effort = at("effort").value;
  return { model: at("model").value, search, ...(effort ? { reasoning_effort: effort } : {}) };
}

export function key() {
  return at("key").value.trim();
}

export function askForKey() {
  at("settings").open = true;
  at("key").focus();
}

/** Fill the choices with what the server has. */
export function show(found) {
  models = found;
  const wanted = remembered("model");
  fill("model", found.map((one) => [one.id, one.id]), wanted);
  showSearch();
}

export function wire(onKey) {
  at("key").value = stored(sessionStorage, "lora_cot.key") ?? "";
  at("candidates").value = remembered("candidates");
  at("key").onchange = () => {
    store(sessionStorage, "lora_cot.key", key());
    onKey();
  };
  for (const name of REMEMBERED) {
    at(name).addEventListener("change", () => {
      store(localStorage, `lora_cot.${name}`, at(name).value);
      if (name === "model") showSearch();
    });
  }
  if (matchMedia("(max-width: 45rem)").matches) at("settings").open = at("past").open = false;
}

function showSearch() {
  const search = models.find((one) => one.id === at("model").value)?.x_search ?? {};
  const byDefault = search.default ? `the model's own: ${search.default.strategy}` : "the model's own";
  const efforts = Object.entries(search.reasoning_effort ?? {}).map(([name, preset]) => [name, `${name}: ${described(preset)}`]);
  fill("effort", [["", byDefault], ...efforts], remembered("effort"));
  const strategies = (search.strategies ?? []).map((name) => [name, name.replaceAll("_", " ")]);
  fill("strategy", [["", "as effort says"], ...strategies], remembered("strategy"));
  at("candidates").max = search.max_candidates ?? 64;
}

function described(preset) {
  return preset.candidates ? `${preset.strategy}, ${preset.candidates} candidates` : preset.strategy;
}

function fill(id, choices, wanted) {
  const options = choices.map(([value, text]) => new Option(text, value));
  at(id).replaceChildren(...options);
  if (choices.some(([value]) => value === wanted)) at(id).value = wanted;
}

function remembered(name) {
  return stored(localStorage, `lora_cot.${name}`) ?? "";
}

function stored(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null; // a browser that keeps nothing
  }
}

function store(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch {
    // it is asked for again next time
  }
}
