@export()
@description('The email addresses in a list whose entries are separated by commas or semicolons.')
func addresses(list string) string[] =>
  filter(map(split(replace(list, ';', ','), ','), part => trim(part)), part => !empty(part))
