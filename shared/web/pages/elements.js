// Elements and dialogs. Text is only ever set as text: the page's policy refuses innerHTML altogether.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A question in a dialog. With a label: what was typed, else true. Null where it was dismissed.
export function ask({ title, text, action, label, type = "text", value = "" }) {
  return new Promise((resolve) => {
    const heading = element("h2", { id: "asked" }, title);
    const input = element("input", {
      id: "answered",
      type,
      value,
      required: true,
      autocomplete: "off",
      maxLength: 500,
    });
    const field = label ? [element("label", { htmlFor: "answered" }, label), input] : [];
    const cancel = element("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const buttons = element(
      "div",
      { className: "buttons" },
      cancel,
      element("button", { className: "primary" }, action),
    );
    const form = element("form", {}, heading, element("p", {}, text), ...field, buttons);
    const dialog = element("dialog", { "aria-labelledby": "asked" }, form);
    let answer = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = label ? input.value.trim() || null : true;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// How Api asks for a key.
export const asksKey = (title, label) => (said, wrong) =>
  ask({
    title,
    text: wrong
      ? `That key was not accepted. ${said}`
      : "It is kept until this tab is closed, and sent to this service alone.",
    label,
    type: "password",
    action: "Continue",
  });
