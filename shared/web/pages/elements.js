// Elements and dialogs. Text is only set as text: the content security policy forbids innerHTML.

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in created) created[key] = value;
    else created.setAttribute(key, value);
  }
  created.append(...children);
  return created;
}

export function svgElement(name, attributes = {}, ...children) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children);
  return created;
}

// Shows a dialog. Resolves to the text entered if there is a `label`, else to true; to null if it was cancelled.
export function showDialog({ title, text, action, label, type = "text", value = "" }) {
  return new Promise((resolve) => {
    const heading = element("h2", { id: "dialog-title" }, title);
    const input = element("input", {
      id: "dialog-input",
      type,
      value,
      required: true,
      autocomplete: "off",
      maxLength: 500,
    });
    const field = label ? [element("label", { htmlFor: "dialog-input" }, label), input] : [];
    const cancel = element("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const buttons = element(
      "div",
      { className: "buttons" },
      cancel,
      element("button", { className: "primary" }, action),
    );
    const form = element("form", {}, heading, element("p", {}, text), ...field, buttons);
    const dialog = element("dialog", { "aria-labelledby": "dialog-title" }, form);
    let result = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      result = label ? input.value.trim() || null : true;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// `askKey` of Api.
export const keyDialog = (title, label) => (message, wasRejected) =>
  showDialog({
    title,
    text: wasRejected
      ? `The key was rejected. ${message}`
      : "The key is stored until this tab is closed and is sent only to this server.",
    label,
    type: "password",
    action: "Continue",
  });
