// The limits of the app's callers: the app setting LIMITS, and the deployments whose price is not known.

import { deployment } from 'openai.bicep'

@export()
@description('The deployments without a price in PRICES or in the app\'s price list. The app refuses their calls where a limit in USD applies.')
func unpriced(deployments deployment[], prices object) deployment[] =>
  filter(
    deployments,
    each =>
      empty(intersection(
        map([each.name, each.model, '${each.model}-${each.version}'], name => spelled(name)),
        map(objectKeys(prices), name => spelled(name))
      )) && empty(intersection(
        [spelled('${each.model}-${each.version}'), spelled('${each.model}-*')],
        loadJsonContent('../priced-models.json')
      ))
  )

@description('The model\'s name in OpenAI\'s spelling, as shared/domain/pricing.py compares it.')
func spelled(name string) string => replace(name, 'gpt-35-', 'gpt-3.5-')

@export()
@description('A limit in USD as a property of LIMITS, or none: empty for the default, 0 for no limit.')
func usd(name string, amount string, default string) object =>
  isOff(checked(empty(amount) ? default : amount)) ? {} : { '${name}': empty(amount) ? default : amount }

@description('The amount, if it is a number that the app accepts: up to 6 digits before a decimal point and 12 after it.')
func checked(amount string) string =>
  isNumber(amount) && fits(split(amount, '.'))
    ? amount
    : fail('"${amount}" is not an amount in USD such as 20 or 12.50, below 1000000 and without a currency.')

func isNumber(amount string) bool =>
  amount != '.' && empty(join(split(amount, ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '.']), ''))

func fits(parts string[]) bool => length(parts) <= 2 && length(first(parts)!) <= 6 && length(last(parts)!) <= 12

@description('Whether the amount is 0, in any notation.')
func isOff(amount string) bool => empty(join(split(amount, ['0', '.']), ''))
