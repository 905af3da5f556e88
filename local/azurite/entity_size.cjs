// Loaded into Azurite before it starts. Azurite limits an entity by the bytes of the JSON that is sent, where a character
// can take 6; Table Storage counts 2 per UTF-16 unit. What remains is the limit of a request, as in Azure.
const path = require("path");
const constants = require(path.join(path.dirname(process.argv[1]), "utils/constants"));

constants.ENTITY_SIZE_MAX = constants.BODY_SIZE_MAX;
